"""fwctl's command line: arguments, requests to the plugin's socket, and output as text, colours or JSON."""
