//! Eigenvalues and orthonormal bases: the only module that calls a linear-algebra library.

use ndarray::{Array1, Array2};

use crate::factor::registers::clear_upper_halves;

/// The factorization did not converge, or its input was not finite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the eigenvalues of a {size}x{size} matrix could not be computed: {detail}")]
pub struct SpectralError {
    /// Rows of the matrix.
    pub size: usize,
    /// The error of the library.
    pub detail: String,
}

/// Eigenvalues in descending order, and eigenvectors as columns, each with its largest component positive.
#[derive(Debug, Clone)]
pub struct Eigen {
    /// `[n]`, largest first.
    pub values: Array1<f64>,
    /// [n, n]; column `i` belongs to `values[i]`.
    pub vectors: Array2<f64>,
}

/// The eigendecomposition of the symmetric matrix `a` [n, n], by LAPACK if the crate is built with the feature
/// `lapack`, else by faer.
pub fn symmetric_eigen(a: &Array2<f64>) -> Result<Eigen, SpectralError> {
    if a.iter().any(|x| !x.is_finite()) {
        return Err(SpectralError {
            size: a.nrows(),
            detail: "an element is not finite".to_owned(),
        });
    }
    if a.nrows() == 0 {
        return Ok(Eigen {
            values: Array1::zeros(0),
            vectors: Array2::zeros((0, 0)),
        });
    }
    #[cfg(feature = "lapack")]
    let eigen = lapack(a)?;
    #[cfg(not(feature = "lapack"))]
    let eigen = faer(a)?;
    Ok(canonical(eigen))
}

/// By faer, in pure Rust and single-threaded, so that results are reproducible bit by bit.
pub fn faer(a: &Array2<f64>) -> Result<Eigen, SpectralError> {
    let n = a.nrows();
    let matrix = faer::Mat::from_fn(n, n, |i, j| a.get((i, j)).copied().unwrap_or_default());
    let eigen = matrix
        .self_adjoint_eigen(faer::Side::Lower)
        .map_err(|e| SpectralError {
            size: n,
            detail: format!("{e:?}"),
        });
    clear_upper_halves();
    let eigen = eigen?;
    let (u, s) = (eigen.U(), eigen.S().column_vector());
    // faer sorts in ascending order.
    Ok(Eigen {
        values: Array1::from_shape_fn(n, |i| *s.get(n - 1 - i)),
        vectors: Array2::from_shape_fn((n, n), |(i, j)| *u.get(i, n - 1 - j)),
    })
}

/// An orthonormal basis [n, m] of a space that contains the columns of `a` [n, m], n >= m: the Q of its QR
/// decomposition by Householder reflections. `None` if an element is not finite.
pub fn orthonormal(a: &Array2<f64>) -> Option<Array2<f64>> {
    let (n, m) = a.dim();
    if n < m || a.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let matrix = faer::Mat::from_fn(n, m, |i, j| a.get((i, j)).copied().unwrap_or_default());
    let q = matrix.qr().compute_thin_Q();
    clear_upper_halves();
    Some(Array2::from_shape_fn((n, m), |(i, j)| {
        q.get(i, j).to_owned()
    }))
}

/// By LAPACK's `dsyev`.
#[cfg(feature = "lapack")]
pub fn lapack(a: &Array2<f64>) -> Result<Eigen, SpectralError> {
    use ndarray_linalg::{Eigh, UPLO};
    let (values, vectors) = a.eigh(UPLO::Lower).map_err(|e| SpectralError {
        size: a.nrows(),
        detail: e.to_string(),
    })?;
    // LAPACK sorts in ascending order.
    Ok(Eigen {
        values: values.slice(ndarray::s![..;-1]).to_owned(),
        vectors: vectors.slice(ndarray::s![.., ..;-1]).to_owned(),
    })
}

/// Fixes the arbitrary signs of the eigenvectors, so that results are reproducible.
pub fn canonical(mut eigen: Eigen) -> Eigen {
    for mut vector in eigen.vectors.columns_mut() {
        // The first component whose magnitude is the largest up to rounding decides.
        let largest = vector.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let decides = vector
            .iter()
            .find(|x| x.abs() >= largest * (1.0 - 1e-9))
            .copied();
        if decides.is_some_and(|x| x < 0.0) {
            vector.mapv_inplace(|x| -x);
        }
    }
    eigen
}

/// `a` to the power one half and minus one half, for a positive semidefinite `a`.
///
/// Eigenvalues below `ridge` times the largest are raised to this value, so that the inverse exists.
pub fn square_roots(
    a: &Array2<f64>,
    ridge: f64,
) -> Result<(Array2<f64>, Array2<f64>), SpectralError> {
    let eigen = symmetric_eigen(a)?;
    let largest = eigen.values.first().copied().unwrap_or(0.0).max(0.0);
    if largest <= 0.0 {
        let identity = Array2::eye(a.nrows());
        return Ok((identity.clone(), identity));
    }
    let roots = eigen.values.mapv(|v| v.max(largest * ridge).sqrt());
    let scaled = &eigen.vectors * &roots;
    let inverse = &eigen.vectors / &roots;
    Ok((
        scaled.dot(&eigen.vectors.t()),
        inverse.dot(&eigen.vectors.t()),
    ))
}
