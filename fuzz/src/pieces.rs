//! Bytes as they come over a network: in pieces, split anywhere.

use std::io::{self, Read};

/// The sizes of the pieces of a stream, repeated.
pub type Cuts = [u8; 4];

/// Takes the split from the front of `input`; returns nothing if it is too short.
pub fn split(input: &[u8]) -> Option<(Cuts, &[u8])> {
    input.split_first_chunk().map(|(cuts, stream)| (*cuts, stream))
}

/// Returns the pieces of `stream`, none of them empty.
pub fn cut(stream: &[u8], cuts: Cuts) -> Vec<&[u8]> {
    let mut sizes = cuts.into_iter().map(|size| usize::from(size).max(1)).cycle();
    let mut rest = stream;
    let mut pieces = Vec::new();
    while let Some(size) = sizes.next().filter(|_| !rest.is_empty()) {
        let (piece, after) = rest.split_at(size.min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// A stream that returns at most one piece at a time.
pub struct InPieces<'a> {
    rest: std::vec::IntoIter<&'a [u8]>,
    piece: &'a [u8],
}

impl<'a> InPieces<'a> {
    /// Splits `stream` like that.
    pub fn new(stream: &'a [u8], cuts: Cuts) -> Self {
        Self { rest: cut(stream, cuts).into_iter(), piece: &[] }
    }
}

impl Read for InPieces<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            self.piece = self.rest.next().unwrap_or_default();
        }
        self.piece.read(room)
    }
}
