//! End-to-end tests only: real binaries and unmodified upstream SDKs. See `tests/`.
