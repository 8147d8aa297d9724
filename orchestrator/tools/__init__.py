"""What an agent can do. `tool` is the port that every tool fills, `toolbox` the only way to call one."""
