"""Projection and spherical harmonics of 3D Gaussians for one camera, forward and backward, compiled by numba.

Symbols: N Gaussians, K spherical-harmonics coefficients, D channels. With W the camera's rotation, R and S the
Gaussian's rotation and scales, J the Jacobian of the perspective projection at its centre:
    U = J W R S  [2, 3],  cov2d = U U^T + eps2d I,  conic = cov2d^-1
(3DGS, Kerbl et al. 2023, Eq. 5 and 6; J's clamp to 1.3 times the field of view as in gsplat). Working with U instead of
a 3D covariance keeps the determinant exact for needle-like Gaussians: det(cov2d) is a sum of non-negative terms.
"""

import numpy as np
from numba import prange

from nfc_splat.rendering.kernels.numba_tools import f32, inlined, steady_kernel
from nfc_splat.rendering.kernels.tiles_cpu import CHANNELS
from nfc_splat.rendering.kernels.usable import LARGEST, LARGEST_FOOTPRINT, SMALLEST_QUATERNION

BLOCK = 256  # Gaussians per piece of work
ALPHA_MIN = f32(1.0 / 255.0)
LIMIT, MIN_QUATERNION, MAX_FOOTPRINT = f32(LARGEST), f32(SMALLEST_QUATERNION), f32(LARGEST_FOOTPRINT)
MAX_RADIUS = f32(1e9)  # fits an int32

SH_C0 = f32(0.28209479177387814)
SH_C1 = f32(0.4886025119029199)
SH_C2 = (f32(1.0925484305920792), f32(0.31539156525252005), f32(0.5462742152960396))
SH_C3 = (f32(0.5900435899266435), f32(2.890611442640554), f32(0.4570457994644658), f32(0.3731763325901154),
         f32(1.445305721320277))  # fmt: skip


@inlined
def _usable(value):
    """Finite and not absurd; NaN compares false."""
    return abs(value) <= LIMIT


@inlined
def _sh_basis(degree, x, y, z, basis):
    """Real spherical harmonics up to `degree` (0 to 3) in unit direction (x, y, z), with 3DGS's signs and order."""
    basis[0] = SH_C0
    if degree > 0:
        basis[1], basis[2], basis[3] = -SH_C1 * y, SH_C1 * z, -SH_C1 * x
    if degree > 1:
        xx, yy, zz = x * x, y * y, z * z
        basis[4], basis[5] = SH_C2[0] * x * y, -SH_C2[0] * y * z
        basis[6] = SH_C2[1] * (f32(2) * zz - xx - yy)
        basis[7], basis[8] = -SH_C2[0] * x * z, SH_C2[2] * (xx - yy)
        if degree > 2:
            basis[9], basis[10] = -SH_C3[0] * y * (f32(3) * xx - yy), SH_C3[1] * x * y * z
            basis[11] = -SH_C3[2] * y * (f32(4) * zz - xx - yy)
            basis[12] = SH_C3[3] * z * (f32(2) * zz - f32(3) * xx - f32(3) * yy)
            basis[13] = -SH_C3[2] * x * (f32(4) * zz - xx - yy)
            basis[14], basis[15] = SH_C3[4] * z * (xx - yy), -SH_C3[0] * x * (xx - f32(3) * yy)


@inlined
def _sh_direction_gradient(degree, x, y, z, v):
    """Gradient of sum_k v[k] basis[k] with respect to the (unnormalised formula's) x, y, z."""
    vx, vy, vz = f32(0), f32(0), f32(0)
    if degree > 0:
        vx, vy, vz = -SH_C1 * v[3], -SH_C1 * v[1], SH_C1 * v[2]
    if degree > 1:
        vx += SH_C2[0] * (y * v[4] - z * v[7]) + f32(2) * x * (SH_C2[2] * v[8] - SH_C2[1] * v[6])
        vy += SH_C2[0] * (x * v[4] - z * v[5]) - f32(2) * y * (SH_C2[2] * v[8] + SH_C2[1] * v[6])
        vz += -SH_C2[0] * (y * v[5] + x * v[7]) + f32(4) * z * SH_C2[1] * v[6]
    if degree > 2:
        xx, yy, zz = x * x, y * y, z * z
        vx += -f32(6) * SH_C3[0] * x * y * v[9] + SH_C3[1] * y * z * v[10] + f32(2) * SH_C3[2] * x * y * v[11]
        vx += -f32(6) * SH_C3[3] * x * z * v[12] - SH_C3[2] * (f32(4) * zz - f32(3) * xx - yy) * v[13]
        vx += f32(2) * SH_C3[4] * x * z * v[14] - f32(3) * SH_C3[0] * (xx - yy) * v[15]
        vy += -f32(3) * SH_C3[0] * (xx - yy) * v[9] + SH_C3[1] * x * z * v[10]
        vy += -SH_C3[2] * (f32(4) * zz - xx - f32(3) * yy) * v[11] - f32(6) * SH_C3[3] * y * z * v[12]
        vy += f32(2) * SH_C3[2] * x * y * v[13] - f32(2) * SH_C3[4] * y * z * v[14] + f32(6) * SH_C3[0] * x * y * v[15]
        vz += SH_C3[1] * x * y * v[10] - f32(8) * SH_C3[2] * z * (y * v[11] + x * v[13])
        vz += SH_C3[3] * f32(3) * (f32(2) * zz - xx - yy) * v[12] + SH_C3[4] * (xx - yy) * v[14]
    return vx, vy, vz


@inlined
def _rotation(quats, i):
    """Unit quaternion and its norm."""
    w, x, y, z = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
    norm = np.sqrt(w * w + x * x + y * y + z * z)
    return w / norm, x / norm, y / norm, z / norm, norm


@inlined
def _camera_axes(viewmat, w, x, y, z, axes):
    """W R: the Gaussian's axes in camera space, as columns of axes [3, 3]."""
    r00, r01, r02 = f32(1) - f32(2) * (y * y + z * z), f32(2) * (x * y - w * z), f32(2) * (x * z + w * y)
    r10, r11, r12 = f32(2) * (x * y + w * z), f32(1) - f32(2) * (x * x + z * z), f32(2) * (y * z - w * x)
    r20, r21, r22 = f32(2) * (x * z - w * y), f32(2) * (y * z + w * x), f32(1) - f32(2) * (x * x + y * y)
    for k in range(3):
        a, b, c = viewmat[k, 0], viewmat[k, 1], viewmat[k, 2]
        axes[k, 0], axes[k, 1] = a * r00 + b * r10 + c * r20, a * r01 + b * r11 + c * r21
        axes[k, 2] = a * r02 + b * r12 + c * r22


@inlined
def _to_camera(viewmat, means, i):
    mx, my, mz = means[i, 0], means[i, 1], means[i, 2]
    return (
        viewmat[0, 0] * mx + viewmat[0, 1] * my + viewmat[0, 2] * mz + viewmat[0, 3],
        viewmat[1, 0] * mx + viewmat[1, 1] * my + viewmat[1, 2] * mz + viewmat[1, 3],
        viewmat[2, 0] * mx + viewmat[2, 1] * my + viewmat[2, 2] * mz + viewmat[2, 3],
    )


@inlined
def _clamped_slope(slope, focal, center, size):
    """x / z (or y / z) clamped to the image widened by 0.15 of its size on both sides, as gsplat does for J."""
    margin = f32(0.15) * size / focal
    return min(max(slope, -(center / focal + margin)), (size - center) / focal + margin)


@inlined
def _screen_axes(K, width, height, axes, scales, i, x, y, z, screen):
    """U = J W R S into screen [2, 3]; returns the clamped slopes."""
    slope_x = _clamped_slope(x / z, K[0, 0], K[0, 2], f32(width))
    slope_y = _clamped_slope(y / z, K[1, 1], K[1, 2], f32(height))
    fx, fy = K[0, 0] / z, K[1, 1] / z
    for j in range(3):
        screen[0, j] = fx * (axes[0, j] - slope_x * axes[2, j]) * scales[i, j]
        screen[1, j] = fy * (axes[1, j] - slope_y * axes[2, j]) * scales[i, j]
    return slope_x, slope_y


@inlined
def _covariance(screen, eps2d):
    """cov2d entries (a, b, c), its determinant before and after adding eps2d to the diagonal."""
    a = screen[0, 0] * screen[0, 0] + screen[0, 1] * screen[0, 1] + screen[0, 2] * screen[0, 2]
    b = screen[0, 0] * screen[1, 0] + screen[0, 1] * screen[1, 1] + screen[0, 2] * screen[1, 2]
    c = screen[1, 0] * screen[1, 0] + screen[1, 1] * screen[1, 1] + screen[1, 2] * screen[1, 2]
    n0 = screen[0, 1] * screen[1, 2] - screen[0, 2] * screen[1, 1]
    n1 = screen[0, 2] * screen[1, 0] - screen[0, 0] * screen[1, 2]
    n2 = screen[0, 0] * screen[1, 1] - screen[0, 1] * screen[1, 0]
    sharp = n0 * n0 + n1 * n1 + n2 * n2
    return a, b, c, sharp, sharp + eps2d * (a + c) + eps2d * eps2d


@inlined
def _row_usable(means, quats, scales, opacities, sh0, shN, i, used, footprint):
    """The rule of usable.py for one Gaussian; `footprint` is max(fx, fy) / z."""
    for j in range(3):
        if not abs(scales[i, j]) * footprint <= MAX_FOOTPRINT:
            return False
    for j in range(3):
        if not (_usable(means[i, j]) and _usable(scales[i, j])):
            return False
    norm = f32(0)
    for j in range(4):
        norm += quats[i, j] * quats[i, j]
    if not (_usable(norm) and norm > MIN_QUATERNION and _usable(opacities[i])):
        return False
    for channel in range(sh0.shape[2]):
        if not _usable(sh0[i, 0, channel]):
            return False
        for k in range(used - 1):
            if not _usable(shN[i, k, channel]):
                return False
    return True


@steady_kernel
def project_forward(
    means, quats, scales, opacities, sh0, shN, viewmat, K, center, width, height, degree, near, far, eps2d, antialiased,
    with_depth,
):  # fmt: skip
    """Project every Gaussian.

    Args:
        means [N, 3], quats [N, 4] wxyz, scales [N, 3], opacities [N]; sh0 [N, 1, 3] and shN [N, K - 1, 3], or with
        `degree` -1 plain channels in sh0 [N, 1, D]; viewmat [4, 4], K [3, 3], center [3] the camera's position.

    Returns:
        means2d [N, 2], radii [N, 2] int32 (0 = culled), depths [N], splats [N, 4 + D (+ 1 depth)] as tiles_cpu wants,
        filled up with zeros to whole channel groups.
    """
    count, channels = means.shape[0], sh0.shape[2]
    used = max(degree + 1, 1) ** 2
    means2d, radii, depths = np.zeros((count, 2), f32), np.zeros((count, 2), np.int32), np.zeros(count, f32)
    drawn = channels + (1 if with_depth else 0)
    splats = np.zeros((count, 4 + -(-drawn // CHANNELS) * CHANNELS), f32)
    for block in prange(-(-count // BLOCK)):
        axes, screen, basis = np.empty((3, 3), f32), np.empty((2, 3), f32), np.empty(16, f32)
        for i in range(block * BLOCK, min(block * BLOCK + BLOCK, count)):
            x, y, z = _to_camera(viewmat, means, i)
            if not (z >= near and z <= far):
                continue
            footprint = max(K[0, 0], K[1, 1]) / z
            if not _row_usable(means, quats, scales, opacities, sh0, shN, i, used, footprint):
                continue
            qw, qx, qy, qz, _ = _rotation(quats, i)
            _camera_axes(viewmat, qw, qx, qy, qz, axes)
            _screen_axes(K, width, height, axes, scales, i, x, y, z, screen)
            a, b, c, sharp, det = _covariance(screen, eps2d)
            opacity = min(opacities[i], f32(1))
            if antialiased:
                opacity *= np.sqrt(sharp / det)
            u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
            if not opacity >= ALPHA_MIN:
                continue
            extent = min(f32(3.33), np.sqrt(f32(2) * np.log(opacity / ALPHA_MIN)))
            radius_x, radius_y = np.ceil(extent * np.sqrt(a + eps2d)), np.ceil(extent * np.sqrt(c + eps2d))
            if u + radius_x <= 0 or u - radius_x >= width or v + radius_y <= 0 or v - radius_y >= height:
                continue
            if radius_x <= 0 or radius_y <= 0:
                continue
            means2d[i, 0], means2d[i, 1], depths[i] = u, v, z
            radii[i, 0], radii[i, 1] = np.int32(min(radius_x, MAX_RADIUS)), np.int32(min(radius_y, MAX_RADIUS))
            c += eps2d
            splats[i, 0], splats[i, 1], splats[i, 2] = c / det, -b / c, f32(1) / c
            splats[i, 3] = opacity
            if degree < 0:
                for channel in range(channels):
                    splats[i, 4 + channel] = sh0[i, 0, channel]
            else:
                dx, dy, dz = means[i, 0] - center[0], means[i, 1] - center[1], means[i, 2] - center[2]
                inverse = f32(1) / np.sqrt(dx * dx + dy * dy + dz * dz)
                _sh_basis(degree, dx * inverse, dy * inverse, dz * inverse, basis)
                for channel in range(channels):
                    value = f32(0.5) + basis[0] * sh0[i, 0, channel]
                    for k in range(used - 1):
                        value += basis[k + 1] * shN[i, k, channel]
                    splats[i, 4 + channel] = max(value, f32(0))
            if with_depth:
                splats[i, 4 + channels] = z
    return means2d, radii, depths, splats


@inlined
def _conic_to_covariance(splats, v_splats, i):
    """dL/dcov2d = -conic (dL/dconic) conic, as (aa, off-diagonal once, cc)."""
    A, B = splats[i, 0], splats[i, 0] * splats[i, 1]
    C = splats[i, 2] + B * splats[i, 1]
    vA, vB, vC = v_splats[i, 0], f32(0.5) * v_splats[i, 1], v_splats[i, 2]
    p, q = A * vA + B * vB, A * vB + B * vC
    r, s = B * vA + C * vB, B * vB + C * vC
    return -(p * A + q * B), -(p * B + q * C), -(r * B + s * C)


@inlined
def _compensation_backward(a, b, c, sharp, det, eps2d, v_compensation):
    """Gradient of sqrt(sharp / det) with respect to cov2d before eps2d, as (aa, off-diagonal once, cc)."""
    ratio = sharp / det
    scale = f32(0.5) * v_compensation / max(np.sqrt(ratio), f32(1e-6)) / det
    return (
        scale * (c - ratio * (c + eps2d)),
        scale * b * (ratio - f32(1)),
        scale * (a - ratio * (a + eps2d)),
    )


@inlined
def _axes_backward(viewmat, v_axes, quat, norm, v_quats, i):
    """From the gradient of W R [3, 3] to that of the unnormalised quaternion."""
    w, x, y, z = quat
    r = np.empty((3, 3), f32)
    for j in range(3):
        for k in range(3):
            r[j, k] = viewmat[0, j] * v_axes[0, k] + viewmat[1, j] * v_axes[1, k] + viewmat[2, j] * v_axes[2, k]
    vw = f32(2) * (x * (r[2, 1] - r[1, 2]) + y * (r[0, 2] - r[2, 0]) + z * (r[1, 0] - r[0, 1]))
    vx = f32(2) * (y * (r[0, 1] + r[1, 0]) + z * (r[0, 2] + r[2, 0]) + w * (r[2, 1] - r[1, 2]))
    vx -= f32(4) * x * (r[1, 1] + r[2, 2])
    vy = f32(2) * (x * (r[0, 1] + r[1, 0]) + z * (r[1, 2] + r[2, 1]) + w * (r[0, 2] - r[2, 0]))
    vy -= f32(4) * y * (r[0, 0] + r[2, 2])
    vz = f32(2) * (x * (r[0, 2] + r[2, 0]) + y * (r[1, 2] + r[2, 1]) + w * (r[1, 0] - r[0, 1]))
    vz -= f32(4) * z * (r[0, 0] + r[1, 1])
    along = w * vw + x * vx + y * vy + z * vz
    v_quats[i, 0], v_quats[i, 1] = (vw - along * w) / norm, (vx - along * x) / norm
    v_quats[i, 2], v_quats[i, 3] = (vy - along * y) / norm, (vz - along * z) / norm


@inlined
def _color_backward(means, sh0, shN, center, degree, used, splats, v_splats, i, basis, v_basis, v_sh0, v_shN):
    """Spherical-harmonics gradients; returns the gradient of the mean through the viewing direction."""
    dx, dy, dz = means[i, 0] - center[0], means[i, 1] - center[1], means[i, 2] - center[2]
    inverse = f32(1) / np.sqrt(dx * dx + dy * dy + dz * dz)
    dx, dy, dz = dx * inverse, dy * inverse, dz * inverse
    _sh_basis(degree, dx, dy, dz, basis)
    v_basis[:] = f32(0)
    for channel in range(3):
        # A colour clamped at 0 passes no gradient; at exactly 0 torch's clamp_min passes it, so > is only for < 0.
        v = v_splats[i, 4 + channel] if splats[i, 4 + channel] > f32(0) else f32(0)
        v_sh0[i, 0, channel] = basis[0] * v
        for k in range(used - 1):
            v_shN[i, k, channel] = basis[k + 1] * v
            v_basis[k + 1] += shN[i, k, channel] * v
    vx, vy, vz = _sh_direction_gradient(degree, dx, dy, dz, v_basis)
    along = vx * dx + vy * dy + vz * dz
    return (vx - along * dx) * inverse, (vy - along * dy) * inverse, (vz - along * dz) * inverse


@steady_kernel
def project_backward(
    means, quats, scales, opacities, sh0, shN, viewmat, K, center, width, height, degree, eps2d, antialiased,
    with_depth, radii, splats, v_means2d, v_splats,
):  # fmt: skip
    """Gradients of `project_forward`'s inputs; zero for culled Gaussians.

    Args:
        v_means2d [N, 2], v_splats [N, 4 + D]: cotangents, of the conic (A, B, C), the opacity and the channels. The
        rest as in `project_forward`.

    Returns:
        v_means, v_quats, v_scales, v_opacities, v_sh0, v_shN.
    """
    count, channels = means.shape[0], sh0.shape[2]
    used = max(degree + 1, 1) ** 2
    v_means, v_quats, v_scales = np.zeros((count, 3), f32), np.zeros((count, 4), f32), np.zeros((count, 3), f32)
    v_opacities, v_sh0, v_shN = np.zeros(count, f32), np.zeros(sh0.shape, f32), np.zeros(shN.shape, f32)
    for block in prange(-(-count // BLOCK)):
        axes, screen, v_axes = np.empty((3, 3), f32), np.empty((2, 3), f32), np.empty((3, 3), f32)
        basis, v_basis = np.empty(16, f32), np.empty(16, f32)
        for i in range(block * BLOCK, min(block * BLOCK + BLOCK, count)):
            if radii[i, 0] <= 0:
                continue
            x, y, z = _to_camera(viewmat, means, i)
            qw, qx, qy, qz, norm = _rotation(quats, i)
            _camera_axes(viewmat, qw, qx, qy, qz, axes)
            slope_x, slope_y = _screen_axes(K, width, height, axes, scales, i, x, y, z, screen)
            aa, ab, cc = _conic_to_covariance(splats, v_splats, i)
            v_opacity = v_splats[i, 3]
            if antialiased:
                a, b, c, sharp, det = _covariance(screen, eps2d)
                da, db, dc = _compensation_backward(a, b, c, sharp, det, eps2d, v_opacity * min(opacities[i], f32(1)))
                aa, ab, cc = aa + da, ab + db, cc + dc
                v_opacity *= np.sqrt(sharp / det)
            v_opacities[i] = v_opacity if opacities[i] <= f32(1) else f32(0)
            fx, fy = K[0, 0] / z, K[1, 1] / z
            v_fx, v_fy, v_slope_x, v_slope_y = f32(0), f32(0), f32(0), f32(0)
            for j in range(3):
                v0 = f32(2) * (aa * screen[0, j] + ab * screen[1, j])
                v1 = f32(2) * (cc * screen[1, j] + ab * screen[0, j])
                along_x, along_y = axes[0, j] - slope_x * axes[2, j], axes[1, j] - slope_y * axes[2, j]
                v_fx += v0 * along_x * scales[i, j]
                v_fy += v1 * along_y * scales[i, j]
                v_slope_x -= v0 * fx * axes[2, j] * scales[i, j]
                v_slope_y -= v1 * fy * axes[2, j] * scales[i, j]
                v_scales[i, j] = v0 * fx * along_x + v1 * fy * along_y
                v_axes[0, j], v_axes[1, j] = v0 * fx * scales[i, j], v1 * fy * scales[i, j]
                v_axes[2, j] = -(v_axes[0, j] * slope_x + v_axes[1, j] * slope_y)
            _axes_backward(viewmat, v_axes, (qw, qx, qy, qz), norm, v_quats, i)
            if slope_x != x / z:
                v_slope_x = f32(0)
            if slope_y != y / z:
                v_slope_y = f32(0)
            v_x = v_slope_x / z + fx * v_means2d[i, 0]
            v_y = v_slope_y / z + fy * v_means2d[i, 1]
            v_depth = v_splats[i, 4 + channels] if with_depth else f32(0)
            v_z = v_depth - (v_fx * fx + v_fy * fy) / z - (v_x * x + v_y * y) / z
            vmx = viewmat[0, 0] * v_x + viewmat[1, 0] * v_y + viewmat[2, 0] * v_z
            vmy = viewmat[0, 1] * v_x + viewmat[1, 1] * v_y + viewmat[2, 1] * v_z
            vmz = viewmat[0, 2] * v_x + viewmat[1, 2] * v_y + viewmat[2, 2] * v_z
            if degree < 0:
                for channel in range(channels):
                    v_sh0[i, 0, channel] = v_splats[i, 4 + channel]
            else:
                sx, sy, sz = _color_backward(
                    means, sh0, shN, center, degree, used, splats, v_splats, i, basis, v_basis, v_sh0, v_shN
                )
                vmx, vmy, vmz = vmx + sx, vmy + sy, vmz + sz
            v_means[i, 0], v_means[i, 1], v_means[i, 2] = vmx, vmy, vmz
    return v_means, v_quats, v_scales, v_opacities, v_sh0, v_shN
