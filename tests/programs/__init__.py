"""Programs that the tests start in processes of their own: workers whose operations behave as a test needs."""
