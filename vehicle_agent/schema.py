"""The journal's tables (SQLite). One file for each vehicle. ``seen`` is read only: ``floors`` has taken its place."""

__all__ = ["STEPS", "TABLES", "VERSION"]

STEPS = (
    """
ALTER TABLE outbox ADD COLUMN coordinates BLOB;
ALTER TABLE base ADD COLUMN region TEXT NOT NULL DEFAULT '';
ALTER TABLE base ADD COLUMN step BLOB;
""",
    """
ALTER TABLE base ADD COLUMN control BLOB;
CREATE TABLE control (task TEXT PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID;
""",
    """
ALTER TABLE release ADD COLUMN variant TEXT NOT NULL DEFAULT '';
CREATE TABLE personal (
  task TEXT PRIMARY KEY, release_sha256 TEXT NOT NULL, onnx_sha256 TEXT NOT NULL, head BLOB NOT NULL,
  canary BLOB NOT NULL, data TEXT NOT NULL, scores TEXT NOT NULL) WITHOUT ROWID;
""",
    """
CREATE TABLE canary_inputs (task TEXT PRIMARY KEY, sha256 TEXT NOT NULL, blob BLOB NOT NULL);
""",
)
"""Step i brings the tables of version i + 1, as an older program made them, to i + 2."""

VERSION = 1 + len(STEPS)

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE outbox (
  sequence INTEGER PRIMARY KEY, sealed BLOB NOT NULL, sent_sha256 TEXT NOT NULL, update_id TEXT NOT NULL,
  round INTEGER NOT NULL, region TEXT NOT NULL, task TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('waiting', 'stored')), attempts INTEGER NOT NULL DEFAULT 0,
  coordinates BLOB);
CREATE TABLE residual (task TEXT PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE answered (task TEXT NOT NULL, round INTEGER NOT NULL, PRIMARY KEY (task, round)) WITHOUT ROWID;
CREATE TABLE seen (
  task TEXT NOT NULL, region TEXT NOT NULL, round INTEGER NOT NULL, revision INTEGER NOT NULL,
  version INTEGER NOT NULL, onnx_sha256 TEXT NOT NULL, release INTEGER NOT NULL,
  PRIMARY KEY (task, region)) WITHOUT ROWID;
CREATE TABLE base (
  task TEXT PRIMARY KEY, version INTEGER NOT NULL, onnx_sha256 TEXT NOT NULL, vector BLOB NOT NULL,
  graph_sha256 TEXT NOT NULL, region TEXT NOT NULL DEFAULT '', step BLOB, control BLOB);
CREATE TABLE control (task TEXT PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE canary_inputs (task TEXT PRIMARY KEY, sha256 TEXT NOT NULL, blob BLOB NOT NULL);
CREATE TABLE graph (task TEXT PRIMARY KEY, sha256 TEXT NOT NULL, layout BLOB NOT NULL, onnx BLOB NOT NULL);
CREATE TABLE release (
  task TEXT NOT NULL, slot TEXT NOT NULL CHECK (slot IN ('active', 'previous')), number INTEGER NOT NULL,
  version INTEGER NOT NULL, onnx_sha256 TEXT NOT NULL, model BLOB NOT NULL, variant TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (task, slot));
CREATE TABLE personal (
  task TEXT PRIMARY KEY, release_sha256 TEXT NOT NULL, onnx_sha256 TEXT NOT NULL, head BLOB NOT NULL,
  canary BLOB NOT NULL, data TEXT NOT NULL, scores TEXT NOT NULL) WITHOUT ROWID;
"""
