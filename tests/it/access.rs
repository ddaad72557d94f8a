//! Who is let in: nobody by accident, nobody without what is asked for, and nobody to keys he may not read.

mod exposure;
