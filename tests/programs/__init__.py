"""Programs that the tests start under the real SDK: workers with a model, a job or a device of their own."""
