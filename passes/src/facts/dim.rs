//! Arithmetic on symbolic sizes with bounded results, also for malicious graphs.
//!
//! Sizes are tract's [`TDim`]. An operation returns `None` if the result would overflow or be too large an expression.

use tract_data::prelude::TDim;

/// Largest integer in an expression: the product of two of them fits an `i64`.
const LARGEST: i64 = 1 << 31;
/// Largest number of terms of an expression; exported models need about ten.
const MOST_TERMS: usize = 48;

/// `a * b`.
pub fn mul(a: &TDim, b: &TDim) -> Option<TDim> {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => constant(a, b, i64::checked_mul),
        (Some(1), None) => bounded(b).then(|| b.clone()),
        (None, Some(1)) => bounded(a).then(|| a.clone()),
        _ => arithmetic(a, b, |a, b| a * b),
    }
}

/// `a + b`.
pub fn add(a: &TDim, b: &TDim) -> Option<TDim> {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => constant(a, b, i64::checked_add),
        (Some(0), None) => bounded(b).then(|| b.clone()),
        (None, Some(0)) => bounded(a).then(|| a.clone()),
        _ => arithmetic(a, b, |a, b| a + b),
    }
}

/// `a - b`.
pub fn sub(a: &TDim, b: &TDim) -> Option<TDim> {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => constant(a, b, i64::checked_sub),
        (None, Some(0)) => bounded(a).then(|| a.clone()),
        (None, None) if a == b => Some(TDim::Val(0)),
        _ => arithmetic(a, b, |a, b| a - b),
    }
}

/// `a / b`: integer division if both are constants (`a >= 0`, `b > 0`), else `None` unless `b` divides `a`
/// symbolically.
pub fn div(a: &TDim, b: &TDim) -> Option<TDim> {
    if let (Some(a), Some(b)) = (a.as_i64(), b.as_i64()) {
        return (b > 0 && a >= 0).then(|| TDim::Val(a / b));
    }
    let mut rest = SizeFactors::of(a);
    rest.remove(&SizeFactors::of(b)).then(|| rest.product())?
}

/// The smaller of `a` and `b`.
pub fn min(a: &TDim, b: &TDim) -> Option<TDim> {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => Some(TDim::Val(a.min(b))),
        _ if a == b => Some(a.clone()),
        _ => arithmetic(a, b, |a, b| TDim::Min(vec![a, b])),
    }
}

/// Product of sizes; `None` if it is out of bounds.
pub fn product<'d>(dims: impl IntoIterator<Item = &'d TDim>) -> Option<TDim> {
    let mut all = TDim::Val(1);
    for dim in dims {
        all = mul(&all, dim)?;
    }
    Some(all)
}

/// Arithmetic on constants, which most sizes are: simplifying an expression costs a hundred times more.
fn constant(a: i64, b: i64, op: fn(i64, i64) -> Option<i64>) -> Option<TDim> {
    let small = |n: &i64| n.unsigned_abs() <= LARGEST.unsigned_abs();
    let result = op(a, b).filter(small);
    result.filter(|_| small(&a) && small(&b)).map(TDim::Val)
}

fn arithmetic(a: &TDim, b: &TDim, op: impl Fn(TDim, TDim) -> TDim) -> Option<TDim> {
    if !bounded(a) || !bounded(b) {
        return None;
    }
    let result = op(a.clone(), b.clone()).simplify();
    bounded(&result).then_some(result)
}

fn bounded(dim: &TDim) -> bool {
    fn terms(dim: &TDim) -> Option<usize> {
        let all = |dims: &[TDim]| {
            dims.iter()
                .try_fold(1, |sum: usize, dim| Some(sum + terms(dim)?))
        };
        match dim {
            TDim::Val(v) => (v.abs() <= LARGEST).then_some(1),
            TDim::Sym(_) => Some(1),
            TDim::Add(dims) | TDim::Mul(dims) | TDim::Min(dims) => all(dims),
            TDim::MulInt(k, dim) => (k.abs() <= LARGEST).then_some(terms(dim)? + 1),
            _ => None,
        }
    }
    terms(dim).is_some_and(|n| n <= MOST_TERMS)
}

/// Whether `dim` is zero or more in every run, as sizes and their sums and products are.
pub fn never_negative(dim: &TDim) -> bool {
    match dim {
        TDim::Val(v) => *v >= 0,
        TDim::Sym(_) => true,
        TDim::Add(dims) | TDim::Mul(dims) | TDim::Min(dims) => dims.iter().all(never_negative),
        TDim::MulInt(k, dim) => *k >= 0 && never_negative(dim),
        _ => false,
    }
}

/// A size in factored form: a constant times expressions that are not products themselves.
#[derive(Debug, Clone)]
pub struct SizeFactors {
    /// The constant factor.
    pub constant: i64,
    /// The other factors, in no particular order.
    pub symbolic: Vec<TDim>,
}

impl SizeFactors {
    /// Splits `dim` into its factors.
    pub fn of(dim: &TDim) -> Self {
        Self::of_product([dim])
    }

    /// Splits the product of `dims` into its factors, without expanding sums.
    pub fn of_product<'d>(dims: impl IntoIterator<Item = &'d TDim>) -> Self {
        let mut factors = Self {
            constant: 1,
            symbolic: Vec::new(),
        };
        dims.into_iter().for_each(|dim| factors.push(dim));
        factors
    }

    fn push(&mut self, dim: &TDim) {
        match dim {
            TDim::Val(v) => self.constant = self.constant.saturating_mul(*v),
            TDim::Mul(dims) => dims.iter().for_each(|d| self.push(d)),
            TDim::MulInt(k, dim) => {
                self.constant = self.constant.saturating_mul(*k);
                self.push(dim);
            }
            TDim::Add(terms) => match common_factor(terms) {
                1 => self.symbolic.push(dim.clone()),
                common => {
                    self.constant = self.constant.saturating_mul(common);
                    let rest = terms.iter().map(|t| divided(t, common)).collect();
                    self.symbolic.push(TDim::Add(rest).simplify());
                }
            },
            other => self.symbolic.push(other.clone()),
        }
    }

    /// Divides by `other`. Returns false and changes nothing if the division leaves a remainder.
    pub fn remove(&mut self, other: &Self) -> bool {
        if other.constant == 0 || self.constant % other.constant != 0 {
            return false;
        }
        let mut rest = self.symbolic.clone();
        for factor in &other.symbolic {
            match rest.iter().position(|f| f == factor) {
                Some(at) => drop(rest.swap_remove(at)),
                None => return false,
            }
        }
        self.constant /= other.constant;
        self.symbolic = rest;
        true
    }

    /// Whether this is the number one.
    pub fn is_one(&self) -> bool {
        self.constant == 1 && self.symbolic.is_empty()
    }

    /// The product of all factors.
    pub fn product(&self) -> Option<TDim> {
        let symbolic = product(&self.symbolic)?;
        mul(&TDim::Val(self.constant), &symbolic)
    }
}

/// The largest constant that divides every term of a sum.
fn common_factor(terms: &[TDim]) -> i64 {
    let coefficient = |term: &TDim| match term {
        TDim::Val(v) => v.unsigned_abs(),
        TDim::MulInt(k, _) => k.unsigned_abs(),
        _ => 1,
    };
    let gcd = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let common = terms.iter().map(coefficient).fold(0, gcd);
    i64::try_from(common.max(1)).unwrap_or(1)
}

/// One term of a sum, divided by a constant that divides its coefficient.
fn divided(term: &TDim, by: i64) -> TDim {
    match term {
        TDim::Val(v) => TDim::Val(v / by),
        TDim::MulInt(k, dim) if *k == by => (**dim).clone(),
        TDim::MulInt(k, dim) => TDim::MulInt(k / by, dim.clone()),
        other => other.clone(),
    }
}
