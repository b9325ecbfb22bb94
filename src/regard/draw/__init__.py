"""Drawing what a model looks at: numbers, terminal, page."""
