import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.folder import LEASE_NAME, Folder
from cluster.lease import Lease, holder


def test_one_holder_at_a_time(folder: Folder):
    first = Lease.take(folder, "run-1")
    assert first is not None and first.is_held()
    assert Lease.take(folder, "run-2") is None
    assert holder(folder).run_id == "run-1"
    first.release()
    assert holder(folder) is None
    second = Lease.take(folder, "run-2")
    assert second is not None and not first.beat()
    first.release()  # of a lease that is another's: nothing happens
    assert second.is_held()


def test_an_expired_lease_is_taken_over_and_its_holder_finds_out(tmp_path: Path):
    folder = Folder(tmp_path)
    slow = Lease.take(folder, "slow", seconds=0.2)
    assert Lease.take(folder, "quick") is None
    time.sleep(0.3)
    quick = Lease.take(folder, "quick", seconds=30)
    assert quick is not None and not slow.beat() and quick.beat()


def test_heartbeats_keep_it(tmp_path: Path):
    lease = Lease.take(Folder(tmp_path), "run", seconds=0.4)
    for _ in range(4):
        time.sleep(0.2)
        assert lease.beat()
        assert Lease.take(Folder(tmp_path), "other") is None


def test_the_lease_of_a_dead_process_here_is_free_at_once(tmp_path: Path):
    code = (
        "from cluster.folder import Folder; from cluster.lease import Lease; import sys\n"
        "Lease.take(Folder(sys.argv[1]), 'dead')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    left = holder(Folder(tmp_path))
    assert left.run_id == "dead" and time.time() - left.time < left.seconds
    assert Lease.take(Folder(tmp_path), "next") is not None


def test_a_process_elsewhere_is_believed_until_its_time_is_over(tmp_path: Path):
    folder = Folder(tmp_path)
    Lease.take(folder, "elsewhere")
    content = folder.read_json(LEASE_NAME)
    content["process"] |= {"host": "another-host", "pid": 999_999_999}
    folder.write_json(LEASE_NAME, content)
    assert Lease.take(folder, "here") is None
    content["time"] -= content["seconds"] + 1
    folder.write_json(LEASE_NAME, content)
    assert Lease.take(folder, "here") is not None


def test_of_many_takers_one_gets_it(tmp_path: Path):
    folder = Folder(tmp_path)
    for _ in range(10):
        with ThreadPoolExecutor(max_workers=8) as pool:
            taken = list(pool.map(lambda index: Lease.take(folder, f"run-{index}"), range(8)))
        winners = [lease for lease in taken if lease is not None]
        assert len(winners) == 1
        winners[0].release()


def test_a_broken_lease_file_holds_nobody_up(tmp_path: Path):
    folder = Folder(tmp_path)
    folder.write_text(LEASE_NAME, "{")
    assert holder(folder) is None and Lease.take(folder, "run") is not None
