raise AssertionError("a plugin of another API must not be imported")
