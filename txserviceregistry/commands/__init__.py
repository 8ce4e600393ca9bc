"""What runs as a process: the commands of twistd, and the console scripts."""
