//! REST request and response types of the control plane, and nothing else.
