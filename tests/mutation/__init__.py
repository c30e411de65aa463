"""Mutation: each rule of the table and each condition is weakened, one at a time, and a test must fail.

`python -m tests.mutation` makes the mutants, runs the tests that reach each of them, and writes docs/mutation.md.
`survivors` lists the mutants that no test need find, with the reason.
"""
