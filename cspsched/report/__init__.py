"""Tables, Markdown and figures of a comparison or a solution."""
