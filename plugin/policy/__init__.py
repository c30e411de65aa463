"""The policy of each address, and its reasons: facts and rules in, policies and verdicts out.

Pure: it decides, and touches nothing outside. Anything unknown stays closed. `verdict` is the reference for one packet;
`fwctl explain` shows it, and tests compare the kernel with it.
"""
