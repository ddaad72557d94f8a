//! A whole reply that can be written in RESP3 and in RESP2.

use bytes::Bytes;

use super::resp2::{Resp2Form, Shape};

/// A whole reply in RESP3, and what its RESP2 form needs.
#[derive(Debug, Clone)]
pub struct ReplyFrame {
    bytes: Bytes,
    shape: Shape,
    resp2: Resp2Form,
}

impl ReplyFrame {
    /// Creates the frame of a reply. `bytes` are the reply in RESP3, and `shape` the difference of
    /// its RESP2 form.
    pub fn new(bytes: Bytes, shape: Shape) -> Self {
        let resp2 = Resp2Form::new(&bytes, shape);
        Self { bytes, shape, resp2 }
    }

    /// Returns the reply in RESP3.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the difference of its RESP2 form.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Returns the way to its RESP2 form.
    pub fn resp2(&self) -> Resp2Form {
        self.resp2
    }
}
