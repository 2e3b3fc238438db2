from metaensemble.report.conditioning import listening, listening_lines


def test_the_lines_say_what_was_measured():
    found = {
        "own_kl": 0.041,
        "other_kl": 0.063,
        "gain": 0.022,
        "gain_error": 0.003,
        "reference_gain": 0.02,
        "reading_gain": 0.001,
        "reading_error": 0.002,
        "accuracy": 0.9,
        "accuracy_unrelated": 0.8,
        "ensembles": 3.0,
    }
    first, second, third = listening_lines(found)
    assert first == (
        "the predictor listens to its teachers: KL to its own ensemble 0.0410, to "
        "others 0.0630 (difference 0.0220 ± 0.0030, of references alone 0.0200; 3 "
        "ensembles)"
    )
    assert "0.0010 ± 0.0020 nats" in second
    assert "90.0%" in third
    assert "80.0%" in third
    unsure = listening({**found, "gain_error": 0.02})
    assert unsure.startswith("the predictor is not shown to listen to its teachers: KL")
    del found["gain_error"]
    assert "0.0220, its error unknown, of" in listening(found)
