//! The paths that other parts have to know of: the access log names them, and `rest.path` may be
//! none of them.

/// The paths of the operator's routes. Those below them, such as `/status.json`, belong to them.
pub(crate) const OPERATOR_ROUTES: [&str; 7] =
    ["/metrics", "/livez", "/readyz", "/hotkeys", "/report", "/cache", "/status"];
