"""A quick check whether a server answers: clients of the Hub retry for most of a minute."""

import threading
import urllib.error
import urllib.request

NETWORK_TIMEOUT = 1.5  # seconds until a machine counts as offline


def reachable(url: str) -> bool:
    """Whether the server answers within NETWORK_TIMEOUT; in a thread, since looking up a name heeds no time-out."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=NETWORK_TIMEOUT).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()  # a refusal is an answer; the download will report it
        except OSError:
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(NETWORK_TIMEOUT)
    return answered.is_set()
