"""The command `justforward`: one file per subcommand, which parses its words and prints; the work is
done in other rooms.

May import everything. Start with `cli`, whose table names the commands.
"""
