"""What is known about containers and networks, what each address accepts because of it, and the verdict on one packet.

Pure: it decides and touches nothing.
"""
