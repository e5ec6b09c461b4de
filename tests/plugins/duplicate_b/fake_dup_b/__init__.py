raise AssertionError("neither of two claimants may be imported")
