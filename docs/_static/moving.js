/* A button under each picture that moves: it stops, and goes on. Without this script the picture moves and the button is not there. */
for (const figure of document.querySelectorAll(".moving-picture")) {
  const button = figure.querySelector("button");
  const pictures = figure.querySelectorAll("svg");
  button.hidden = matchMedia("(prefers-reduced-motion: reduce)").matches;
  button.addEventListener("click", () => {
    const stopped = pictures[0].animationsPaused();
    for (const picture of pictures) stopped ? picture.unpauseAnimations() : picture.pauseAnimations();
    button.textContent = stopped ? "Pause" : "Play";
  });
}
