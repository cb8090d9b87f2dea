package model

import (
	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/kernels/cuda"
)

// gpuMixing is the sites of a model whose mixing depends on the token, on a device: that of
// the attention of layer i is number 2i, that of its feed-forward part 2i+1.
type gpuMixing struct {
	kernels *cuda.MHC
	sites   *cuda.MHCSites
}

// mhcShape is what the hyper-connections of a model have in common.
func mhcShape(c *config.Model) cuda.MHCShape {
	return cuda.MHCShape{
		Streams: c.Streams, Dim: c.Dim, Sinkhorn: c.MHC == config.MHCSinkhorn, Iters: c.SinkhornIters, Dynamic: c.MHCDynamic,
	}
}

// newGPUMixing copies the sites of m to a device.
func newGPUMixing(t *cuda.Thread, image cuda.Image, m *Model, keep *gpuMemory) (*gpuMixing, error) {
	k, err := t.MHC(image)
	if err != nil {
		return nil, err
	}
	sites := make([]cuda.MHCSite, 2*len(m.layers))
	for i := range sites {
		l := &m.layers[i/2]
		from, to := l.mhcAttn, &sites[i]
		if i%2 == 1 {
			from = l.mhcFFN
		}
		for _, v := range []struct {
			dst *cuda.Ptr
			src []float32
		}{{&to.Pre, from.Pre}, {&to.Post, from.Post}, {&to.Res, from.Res}, {&to.Gate, from.Gate}, {&to.Proj, from.Proj}} {
			if *v.dst, err = sendGPU(t, keep, v.src, 4); err != nil {
				return nil, err
			}
		}
	}
	s, err := k.Sites(mhcShape(&m.cfg), sites, 0)
	return &gpuMixing{k, s}, err
}

// mix queues m. Where the mixing depends on the token, it writes by what coefs holds, from the
// function that ends, and then finds the coefficients of site, which reads next; below 0: nothing
// is read.
func (d *gpuWork) mix(m cuda.Mix, site, tokens int) error {
	g, c := d.g, &d.g.m.cfg
	if g.mixing == nil {
		return g.ops.Mix(m, tokens, c.Streams, c.Dim)
	}
	u := m.U
	m.U, m.Read, m.Write, m.CoefStride = 0, 0, d.coefs, cuda.CoefFloats
	if m.Y != 0 || m.Scalars != 0 || m.Mean != 0 {
		if err := g.ops.Mix(m, tokens, c.Streams, c.Dim); err != nil || site < 0 {
			return err
		}
	}
	a := &cuda.MHCCoefs{X: m.X, Coef: d.coefs, U: u}
	if tokens <= cuda.FewTokens {
		a.Z, a.Inverse = d.coefZ, d.coefInverse
	}
	return g.mixing.kernels.Coefs(g.mixing.sites, site, a, tokens)
}
