"""What each address accepts, and why: facts and rules in, policies and verdicts out.

Pure: it decides and touches nothing. What it does not know it leaves closed. `verdict` is the reference for one packet;
`fwctl explain` shows it, and tests hold the kernel to it.
"""
