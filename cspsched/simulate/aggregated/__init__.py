"""The fast loop: decodes that go on unchanged are one number, a sum and a calendar of finishes."""
