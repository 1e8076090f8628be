//! The attentions that read one cache, seen as one attention with all their query heads: group by group, and in each group
//! reader by reader. Sums over heads, and so everything that is computed from them, are then those of all readers.

/// The query heads of the attentions that read one cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readers {
    /// H of each attention.
    heads: Vec<usize>,
    /// G.
    kv_heads: usize,
}

impl Readers {
    /// Attentions with `heads` query heads each, which read a cache of `kv_heads` heads.
    #[must_use]
    pub fn new(heads: Vec<usize>, kv_heads: usize) -> Self {
        Self {
            heads,
            kv_heads: kv_heads.max(1),
        }
    }

    /// Number of query heads of all attentions together.
    #[must_use]
    pub fn heads(&self) -> usize {
        self.heads.iter().sum()
    }

    /// For each head of the one attention in turn: the position of the attention that it belongs to, and its number there.
    pub fn in_order(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.kv_heads).flat_map(move |group| {
            let readers = self.heads.iter().enumerate();
            readers.flat_map(move |(reader, heads)| {
                let own = heads / self.kv_heads;
                (group * own..(group + 1) * own).map(move |head| (reader, head))
            })
        })
    }

    /// The heads of the one attention that are those of the attention at `reader`, in its order.
    #[must_use]
    pub fn of(&self, reader: usize) -> Vec<usize> {
        let all = self.in_order().enumerate();
        all.filter(|(_, (of, _))| *of == reader)
            .map(|(position, _)| position)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Readers;

    #[test]
    fn heads_of_one_group_stand_together_whatever_attention_they_are_of() {
        let readers = Readers::new(vec![4, 2], 2);
        let order: Vec<_> = readers.in_order().collect();
        assert_eq!(order, [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (1, 1)]);
        assert_eq!(
            (readers.of(0), readers.of(1)),
            (vec![0, 1, 3, 4], vec![2, 5])
        );
        assert_eq!(readers.heads(), 6);
        let alone = Readers::new(vec![6], 3);
        assert_eq!(alone.of(0), [0, 1, 2, 3, 4, 5]);
    }
}
