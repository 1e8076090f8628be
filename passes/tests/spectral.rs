//! Eigenvalues and roots: every back end gives what the matrices were made with.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod common;

use common::{Random, assert_close};
use gqa2mla_passes::factor::SpectralError;
use gqa2mla_passes::factor::spectral::{Eigen, canonical, faer, square_roots, symmetric_eigen};
use ndarray::{Array1, Array2, s};

/// Rounding of f64 in the sums of a few hundred terms, relative to the largest eigenvalue.
const ROUNDING: f64 = 1e-12;

type Solver = fn(&Array2<f64>) -> Result<Eigen, SpectralError>;

fn back_ends() -> Vec<(&'static str, Solver)> {
    vec![
        ("faer", faer as Solver),
        #[cfg(feature = "lapack")]
        ("LAPACK", gqa2mla_passes::factor::spectral::lapack as Solver),
        ("the one built in", symmetric_eigen as Solver),
    ]
}

/// `q f(values) qᵀ`: what an eigendecomposition stands for, whichever basis it takes of a repeated eigenvalue's space.
fn function(q: &Array2<f64>, values: &Array1<f64>, f: fn(f64) -> f64) -> Array2<f64> {
    (q * &values.mapv(f)).dot(&q.t())
}

/// Spectra, each with a name; the matrices are made with them, so they are known.
fn spectra() -> Vec<(&'static str, Vec<f64>)> {
    vec![
        ("one number", vec![3.0]),
        ("all different", (1..=40).rev().map(f64::from).collect()),
        ("steep", (0..32).map(|i| 10f64.powi(-i / 3)).collect()),
        ("all the same", vec![2.0; 24]),
        (
            "repeated",
            [vec![5.0; 7], vec![2.0; 9], vec![0.5; 8]].concat(),
        ),
        (
            "repeated and zero",
            [vec![4.0; 5], vec![1.0; 5], vec![0.0; 14]].concat(),
        ),
        ("zero", vec![0.0; 6]),
        ("large", vec![3e150, 2e150, 1e150]),
        (
            "a layer's",
            (0..192).map(|i| 1.0 / f64::from(1 + i)).collect(),
        ),
    ]
}

#[test]
fn every_back_end_finds_the_spectrum_a_matrix_was_made_with() {
    for (what, spectrum) in spectra() {
        let values = Array1::from(spectrum);
        let q = Random(values.len() as u64).orthonormal(values.len(), values.len());
        let a = function(&q, &values, |x| x);
        let a = (&a + &a.t()) * 0.5;
        let top = values[0];
        for (name, solve) in back_ends() {
            let found = solve(&a).unwrap();
            let what = format!("{what}, {name}");
            for (found, made) in found.values.iter().zip(&values) {
                assert!(
                    (found - made).abs() <= ROUNDING * top,
                    "{what}: {found} for {made}"
                );
            }
            let falling = found.values.windows(2).into_iter().all(|w| w[0] >= w[1]);
            assert!(falling, "{what}: {}", found.values);
            assert_close(
                &what,
                &found.vectors.t().dot(&found.vectors),
                &Array2::eye(values.len()),
                ROUNDING,
            );
            if top > 0.0 && top < 1e3 {
                // Functions that tell eigenvalues apart, and one that does not mind zeros.
                for f in [(|x| x) as fn(f64) -> f64, |x| x * x, |x| (-x).exp()] {
                    assert_close(
                        &what,
                        &function(&found.vectors, &found.values, f),
                        &function(&q, &values, f),
                        ROUNDING,
                    );
                }
                // The space of the values above a gap, as a truncation keeps it: no spectrum has a value within rounding of
                // 0.77 of its largest.
                let above = |q: &Array2<f64>, v: &Array1<f64>| {
                    let count = v.iter().filter(|x| **x > 0.77 * top).count();
                    let kept = q.slice(s![.., ..count]);
                    kept.dot(&kept.t())
                };
                assert_close(
                    &what,
                    &above(&found.vectors, &found.values),
                    &above(&q, &values),
                    1e-10,
                );
            }
        }
    }
}

#[cfg(feature = "lapack")]
#[test]
fn faer_and_lapack_agree_on_random_matrices() {
    use common::largest;
    use gqa2mla_passes::factor::spectral::lapack;
    for (seed, n) in [(1, 2), (2, 16), (3, 33), (4, 64), (5, 192)] {
        let a = Random(seed).positive(n);
        let (one, other) = (canonical(faer(&a).unwrap()), canonical(lapack(&a).unwrap()));
        let top = one.values[0];
        for (x, y) in one.values.iter().zip(&other.values) {
            assert!((x - y).abs() <= ROUNDING * top, "{x} and {y} at {n}");
        }
        for f in [(|x| x) as fn(f64) -> f64, f64::sqrt, |x| (-x).exp()] {
            let (one, other) = (
                function(&one.vectors, &one.values, f),
                function(&other.vectors, &other.values, f),
            );
            assert_close("functions", &one, &other, 1e-11);
        }
        // Random eigenvalues differ by 1/n of the largest, so the vectors themselves agree up to that factor.
        let apart = largest(&(&one.vectors - &other.vectors));
        assert!(
            apart <= 1e-9,
            "{apart:e} at {n}: the signs or the order differ"
        );
    }
}

#[test]
fn what_has_no_eigenvalues_is_an_error_and_what_is_empty_is_not() {
    let mut a = Random(1).positive(4);
    a[(2, 1)] = f64::NAN;
    let error = symmetric_eigen(&a).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the eigenvalues of a 4x4 matrix could not be computed: an element is not finite"
    );
    let empty = symmetric_eigen(&Array2::zeros((0, 0))).unwrap();
    assert_eq!((empty.values.len(), empty.vectors.len()), (0, 0));
}

#[test]
fn the_sign_of_a_vector_does_not_depend_on_the_solver() {
    let eigen = faer(&Random(9).positive(12)).unwrap();
    let flipped = Eigen {
        vectors: -&eigen.vectors,
        ..eigen.clone()
    };
    let (one, other) = (canonical(eigen), canonical(flipped));
    assert_eq!(one.vectors, other.vectors);
    for vector in one.vectors.columns() {
        let largest = vector
            .iter()
            .copied()
            .fold(0.0f64, |m, x| if x.abs() > m.abs() { x } else { m });
        assert!(largest > 0.0, "{vector}");
    }
    // Two components of one size: the first decides, whatever rounding says about the second.
    for sign in [1.0, -1.0] {
        let tie =
            Array2::from_shape_vec((2, 1), vec![sign * 0.5, -sign * 0.5 * (1.0 + 1e-14)]).unwrap();
        let fixed = canonical(Eigen {
            values: Array1::ones(1),
            vectors: tie,
        });
        assert!(fixed.vectors[(0, 0)] > 0.0, "{}", fixed.vectors);
    }
}

#[test]
fn square_roots_are_roots_and_inverse_to_each_other() {
    let a = Random(3).positive(20);
    let (root, inverse) = square_roots(&a, 1e-10).unwrap();
    assert_close("the square of the root", &root.dot(&root), &a, 1e-12);
    assert_close(
        "root times inverse",
        &root.dot(&inverse),
        &Array2::eye(20),
        1e-11,
    );
    // Singular: what is missing is lifted, so that there is an inverse of what is there.
    let thin = Random(4).matrix(20, 5);
    let (root, inverse) = square_roots(&thin.dot(&thin.t()), 1e-10).unwrap();
    assert_close(
        "root times inverse of a singular matrix",
        &root.dot(&inverse),
        &Array2::eye(20),
        1e-9,
    );
    let (root, inverse) = square_roots(&Array2::zeros((3, 3)), 1e-10).unwrap();
    assert_eq!((root, inverse), (Array2::eye(3), Array2::eye(3)));
}
