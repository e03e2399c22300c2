"""The command `errseg`: it parses, calls the library and reports; nothing else lives here."""
