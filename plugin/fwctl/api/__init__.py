"""The plugin's answers to fwctl: status, explain, plan, export, bans, overrides, the drop log.

It is served on the plugin's unix socket only, which is root's. Queries read a copy of the state and change nothing;
commands change `state`; the drop log reads nfnetlink_log.
"""
