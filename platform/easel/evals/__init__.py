"""What `easel eval` asks a running service, over HTTP like any client, and how it judges the answers."""
