"""Programs that are sent signals in tests."""

# as from a terminal, also where the tests run under nohup or behind `&`, which ignore signals in all that they start
LISTENING = ["env", "--default-signal=INT,HUP,TERM"]
