// Package mhc mixes the residual streams of a network: manifold-constrained
// hyper-connections in the form of mHC-lite, forward and backward.
//
// It knows n streams of dim values and the few numbers that mix them; what a
// layer computes between reading and writing is not its business.
//
// # Definition
//
// A token's state is X [n, dim], n ∈ {1, 2, 4}. Around every layer function F
// (each attention and each feed-forward part is one Site):
//
//	u    = Σ_s h_pre[s]·X[s]                        Coef.Read
//	X'_i = Σ_j H_res[i,j]·X_j + h_post[i]·F(norm u) Coef.Write
//	h_pre = σ(l_pre)   h_post = 2σ(l_post)   H_res = D(l_res)
//
// D makes a doubly stochastic matrix, either
//
//   - BvN (Birkhoff-von Neumann): Σ_k softmax(l)_k·P_k over the n! permutations in
//     lexicographic order, P_k[i, perm_k(i)] = 1. For n = 2 that is αI + (1-α)J.
//     Rows and columns sum to 1 but for the rounding of the softmax. Or
//   - Sinkhorn (Sinkhorn-Knopp on exp(l), [n, n]): a softmax of each row, then
//     SinkhornIters times columns and rows divided by their sums. What is left is
//     removed by the rounding step of Altschuler, Weed and Rigollet (2017): rows
//     and then columns that sum to more than 1 are scaled down, and the deficits
//     r, c are filled up by r·cᵀ/Σr. So both margins are within 1e-6 whatever the
//     logits and the number of iterations.
//
// Static logits are parameters b. Dynamic ones depend on the token:
// l = b + gate·(W·RMSNorm(vec X)), one gate each for l_pre, l_post and l_res, the
// norm without weight and with eps 1e-6.
//
// With n = 1 there are no parameters: u = X and X' = X + F(norm u), bit for bit
// the plain residual network.
//
// # Start
//
// Init makes H_res lean to the identity, h_post exactly 1, and lets layer l read
// stream l mod n more than the others. All streams start as the embedding
// (Expand), so at the start they stay equal and every norm input is a multiple of
// the plain network's: with Collapse, the mean of the streams, the network is the
// plain residual one up to rounding and the eps of its norms. (The sum would
// differ by the factor n in front of the last norm, which cancels it but for eps;
// the mean also leaves the magnitude alone where nothing follows.) The symmetry
// is broken in h_pre: the gradients of the streams differ, so h_post and with it
// the streams part at the first update.
//
// # Backward
//
// The backward pass has the halves of the forward one, in reverse: WriteBackward,
// the layer function, ReadBackward, then Site.Backward from the gradient of the
// mixing to that of the parameters and, for dynamic sites, of the state. Sinkhorn
// is differentiated through the iterations that ran and the rounding step.
//
// Arithmetic is float32 in the canonical order of package kernels: the same bits
// with every set and any number of workers. Sums of gradients over tokens and the
// chain from H_res to its logits are float64.
package mhc
