"""Tests of the sink: promises about points, collections, searches and both stores."""
