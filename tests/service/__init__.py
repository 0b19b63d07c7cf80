"""The service: settings, requests, operations and answers."""
