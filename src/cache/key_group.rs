//! Keys that are looked up together, without an allocation.

use super::store::TOGETHER;

/// At most [`TOGETHER`] keys.
#[derive(Debug)]
pub struct KeyGroup<'a> {
    keys: [&'a [u8]; TOGETHER],
    count: usize,
}

impl<'a> KeyGroup<'a> {
    /// Takes the next keys.
    #[inline]
    pub fn take_from(keys: &mut impl Iterator<Item = &'a [u8]>) -> Self {
        let mut group = Self { keys: [&[]; TOGETHER], count: 0 };
        for (place, key) in group.keys.iter_mut().zip(keys) {
            *place = key;
            group.count += 1;
        }
        group
    }

    /// Returns the keys.
    #[inline]
    pub fn as_slice(&self) -> &[&'a [u8]] {
        &self.keys[..self.count]
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    #[test]
    fn groups_have_each_key_once() {
        let names: Vec<_> = (0..=2 * TOGETHER).map(|number| number.to_string()).collect();
        let mut keys = names.iter().map(String::as_bytes);
        let groups = std::iter::from_fn(|| Some(KeyGroup::take_from(&mut keys)))
            .map(|group| group.as_slice().to_vec())
            .take_while(|group| !group.is_empty());
        let groups: Vec<_> = groups.collect();
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [TOGETHER, TOGETHER, 1]);
        assert_eq!(groups.concat(), names.iter().map(String::as_bytes).collect::<Vec<_>>());
    }
}
