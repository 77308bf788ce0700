def pytest_ignore_collect(collection_path, config):
    """Skip benchmarks unless their folder is named: they take minutes and print tables."""
    return None if any("benchmarks" in str(argument) for argument in config.args) else True
