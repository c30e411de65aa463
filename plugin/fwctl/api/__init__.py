"""What the plugin answers to fwctl, on its unix socket: status, explain, plan, bans, overrides, the drop log."""
