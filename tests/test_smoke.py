import nsjoin


def test_a_program_runs_inside(target):
    result = nsjoin.run_in(target.pid, ["sh", "-c", "echo $$; exit 7"], capture_output=True, text=True)
    assert result.returncode == 7
    assert int(result.stdout) < 50


def test_start_makes_and_ends_a_target(start):
    running = start("net", "time", "pid")
    assert nsjoin.run_in(running.pid, ["true"]).returncode == 0
