"""Examples that can be imported: readable files on top of `polyattn`."""
