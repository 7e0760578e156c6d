"""Measures this library on an accelerator, in one command: see `__main__`.

`record` keeps what was measured, `device` asks the card itself, `steps` runs our
training step, `peers` PyTorch's, `checks` compares with float32 and trains for real,
`report` writes it up, and `wheels` fetches what a bare machine lacks.
"""
