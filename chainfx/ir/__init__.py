"""What a model is here: capture to train form, dialect ops, editing, verification, artefacts."""
