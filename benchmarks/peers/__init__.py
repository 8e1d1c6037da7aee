"""One module per compared library; run in the peers' environment, which `setup_peers.sh` makes."""
