"""Where a user meets the program: command line, terminal, HTTP, web page. No other room imports this one."""
