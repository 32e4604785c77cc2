import unittest

from edge_agent.errors import EdgeError, FrameError, LocalError, RemoteError, StoreError


class TestErrors(unittest.TestCase):
    def test_message_says_what_where_and_what_to_do(self):
        error = StoreError("no space left", "journal/n000001", "Free space or lower the quota.", 28)
        text = str(error)
        self.assertEqual(text, "journal/n000001: no space left. Free space or lower the quota.")
        self.assertEqual(error.code, 28)

    def test_fault_is_ours_or_theirs(self):
        self.assertTrue(issubclass(StoreError, LocalError))
        self.assertTrue(issubclass(FrameError, RemoteError))
        self.assertFalse(issubclass(FrameError, LocalError))

    def test_reason_is_a_token(self):
        error = FrameError("bad-tag", "kid 00")
        self.assertEqual(error.reason, "bad-tag")
        self.assertIsInstance(error, EdgeError)
