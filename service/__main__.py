"""`python -m service` is the command `bge-m3-qdrant`."""

from service.transports.cli.main import main

if __name__ == "__main__":
    main()
