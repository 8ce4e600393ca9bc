"""The programs: commands of twistd, and console scripts."""
