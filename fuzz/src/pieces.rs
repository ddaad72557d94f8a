//! Bytes as they come over a network: in pieces, cut anywhere.

use std::io::{self, Read};

/// How a stream is cut: the sizes of its pieces, over and over.
pub type Cuts = [u8; 4];

/// The first of `input` as the way to cut the rest. Nothing, if it is too short for that.
pub fn split(input: &[u8]) -> Option<(Cuts, &[u8])> {
    input.split_first_chunk().map(|(cuts, stream)| (*cuts, stream))
}

/// The pieces of `stream`, none of them empty.
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

/// A stream that gives no more than a piece at a time.
pub struct InPieces<'a> {
    rest: std::vec::IntoIter<&'a [u8]>,
    piece: &'a [u8],
}

impl<'a> InPieces<'a> {
    /// `stream`, cut like that.
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
