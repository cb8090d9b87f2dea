package cuda

import (
	"fmt"
	"math"
	"unsafe"

	"github.com/architehc/nanochat/kernels/dl"
)

// blasAPI is the functions of libcublasLt that are used, as cublasLt.h declares them. Sizes are
// size_t, types cudaDataType, results cublasStatus_t.
type blasAPI struct {
	Create        func(h *handle) int32                                                                 `c:"cublasLtCreate"`
	Destroy       func(h handle) int32                                                                  `c:"cublasLtDestroy"`
	Version       func() uint64                                                                         `c:"cublasLtGetVersion"`
	StatusName    func(status int32) *byte                                                              `c:"cublasLtGetStatusName"`
	StatusText    func(status int32) *byte                                                              `c:"cublasLtGetStatusString"`
	DescCreate    func(d *handle, compute, scale int32) int32                                           `c:"cublasLtMatmulDescCreate"`
	DescSet       func(d handle, attr int32, v unsafe.Pointer, bytes uint64) int32                      `c:"cublasLtMatmulDescSetAttribute"`
	DescDestroy   func(d handle) int32                                                                  `c:"cublasLtMatmulDescDestroy"`
	LayoutCreate  func(l *handle, kind int32, rows, cols uint64, stride int64) int32                    `c:"cublasLtMatrixLayoutCreate"`
	LayoutSet     func(l handle, attr int32, v unsafe.Pointer, bytes uint64) int32                      `c:"cublasLtMatrixLayoutSetAttribute"`
	LayoutDestroy func(l handle) int32                                                                  `c:"cublasLtMatrixLayoutDestroy"`
	PrefCreate    func(p *handle) int32                                                                 `c:"cublasLtMatmulPreferenceCreate"`
	PrefSet       func(p handle, attr int32, v unsafe.Pointer, bytes uint64) int32                      `c:"cublasLtMatmulPreferenceSetAttribute"`
	PrefDestroy   func(p handle) int32                                                                  `c:"cublasLtMatmulPreferenceDestroy"`
	Heuristic     func(h, desc, a, b, c, d, pref handle, n int32, list *blasChoice, found *int32) int32 `c:"cublasLtMatmulAlgoGetHeuristic"`
	Matmul        func(h, desc handle, alpha unsafe.Pointer, a Ptr, aL handle, b Ptr, bL handle, beta unsafe.Pointer, c Ptr, cL handle, d Ptr, dL handle,
		algo *blasAlgo, workspace Ptr, bytes uint64, s handle) int32 `c:"cublasLtMatmul"`
}

// blasAlgo is cublasLtMatmulAlgo_t and blasChoice cublasLtMatmulHeuristicResult_t.
type blasAlgo [8]uint64

type blasChoice struct {
	algo      blasAlgo
	workspace uint64
	state     int32
	_         float32 // waves
	_         [4]int32
}

// Numbers of cublasLt.h, cublas_api.h and library_types.h; they are those of CUDA 12 and 13.
const (
	compute32F  = 68 // CUBLAS_COMPUTE_32F: float32 operands are not rounded to TF32
	compute32I  = 72
	computeTF32 = 77 // CUBLAS_COMPUTE_32F_FAST_TF32

	descTransA = 3 // CUBLASLT_MATMUL_DESC_TRANSA
	descTransB = 4

	layoutBatch  = 5 // CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT
	layoutStride = 6 // CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, in elements

	prefWorkspace  = 1 // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
	prefReduction  = 3 // CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK
	prefAlignmentA = 5 // CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES; then B, C, D
)

// BlasWorkspace is the bytes of device memory that Blas keeps for its algorithms: what NVIDIA
// recommends for Hopper, where products with few outputs are divided along K.
const BlasWorkspace = 32 << 20

// BlasLibrary is cuBLASLt, NVIDIA's products of dense matrices.
type BlasLibrary struct {
	api  blasAPI
	path string
}

// OpenBlas opens cuBLASLt. dirs are searched before the system's directories. A machine without
// it is a *dl.Error.
func OpenBlas(dirs ...string) (*BlasLibrary, error) {
	lib, err := openFor(dl.Search{
		Name: "cuBLASLt", Files: []string{"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}, Dirs: dirs,
		Hint: "pip install nvidia-cublas, or install the CUDA toolkit; " + LibDirVariable + " names its directory",
	})
	if err != nil {
		return nil, err
	}
	l := &BlasLibrary{path: lib.Path()}
	return l, lib.Bind(&l.api)
}

// Version of the library, such as "13.1.0".
func (l *BlasLibrary) Version() string {
	v := l.api.Version() // major·10000 + minor·100 + patch
	return fmt.Sprintf("%d.%d.%d", v/10000, v/100%100, v%100)
}

// Path is the file of the library.
func (l *BlasLibrary) Path() string { return l.path }

// Blas is the products on one thread.
type Blas struct {
	t         *Thread
	lib       *BlasLibrary
	handle    handle
	workspace Ptr
	plans     map[blasKey]*blasPlan
	one, zero [4]byte // alpha and beta of the call, as the scale's type
}

// Blas makes the products ready on this thread, once.
func (t *Thread) Blas(lib *BlasLibrary) (*Blas, error) {
	if t.blas != nil {
		return t.blas, nil
	}
	b := &Blas{t: t, lib: lib, plans: map[blasKey]*blasPlan{}}
	var err error
	if b.workspace, err = t.Alloc(BlasWorkspace); err != nil {
		return nil, err
	}
	if err := b.check("cublasLtCreate", lib.api.Create(&b.handle)); err != nil {
		_ = t.Free(b.workspace) // it is allocated
		return nil, err
	}
	t.blas = b
	return b, nil
}

// free gives back what the library has; the workspace is the thread's.
func (b *Blas) free() {
	for _, p := range b.plans {
		p.destroy(b)
	}
	b.lib.api.Destroy(b.handle)
}

// BlasType is the type of a matrix's elements.
type BlasType int

// The types. Products of I8 are I32; others are of their factors' type, or F32.
const (
	BlasF32 BlasType = iota
	BlasF16
	BlasBF16
	BlasI8
	BlasI32
)

var blasTypes = [...]struct {
	name string
	kind int32 // cudaDataType
	size int64
}{{"f32", 0, 4}, {"f16", 2, 2}, {"bf16", 14, 2}, {"i8", 3, 1}, {"i32", 10, 4}}

func (t BlasType) String() string {
	if t < 0 || int(t) >= len(blasTypes) {
		return fmt.Sprintf("BlasType(%d)", int(t))
	}
	return blasTypes[t].name
}

// Product is D = Alpha·op(A)·op(B) + Beta·C of matrices in rows, where op(A) is [M][K], op(B) [K][N]
// and C and D [M][N]. Strides are in elements.
type Product struct {
	M, N, K int
	A, B, D Ptr
	// C is D if it is 0; it may be A or B. Its type is D's.
	C            Ptr
	TypeA, TypeD BlasType // B is of A's type
	// LDA is the distance of rows of A as it is stored; 0: they follow each other. The others too.
	LDA, LDB, LDC, LDD int
	// TransA says that A is stored as [K][M], TransB that B is stored as [N][K].
	TransA, TransB bool
	// Alpha and Beta are whole numbers for products of I8, which need TransB and not TransA, and N, K
	// and the distances of rows in fours. With Beta 0 C is not read.
	Alpha, Beta float32
	// TF32 rounds factors of F32 to 11 significant bits, which is several times as fast.
	TF32 bool
	// Batch is the number of products, 0 like 1; the matrices of one are StrideA ... after those of the
	// one before. A stride of 0 is the same matrix again, which D cannot be.
	Batch                              int
	StrideA, StrideB, StrideC, StrideD int64
}

func (p *Product) String() string {
	s := fmt.Sprintf("%s %dx%dx%d to %s", p.TypeA, p.M, p.N, p.K, p.TypeD)
	if p.Batch > 1 {
		s += fmt.Sprintf(", %d of them", p.Batch)
	}
	return s
}

// blasKey is all that the choice of an algorithm depends on.
type blasKey struct {
	m, n, k, lda, ldb, ldc, ldd, batch int
	typeA, typeD                       BlasType
	transA, transB, tf32               bool
	strideA, strideB, strideC, strideD int64
	alignment                          [4]uint32 // of A, B, C, D, as bytes
}

type blasPlan struct {
	desc    handle
	layouts [4]handle // A, B, C, D of the library, which is ours of B, A, C, D
	choices []blasChoice
	settled bool // the first of choices has been queued
}

// complete fills in what is 0, and checks.
func (p *Product) complete() error {
	wrong := func(format string, args ...any) error {
		return &Error{Call: "matrix product " + p.String(), Device: -1, Text: fmt.Sprintf(format, args...)}
	}
	if p.M < 0 || p.N < 0 || p.K < 1 || p.Batch < 0 || max(p.M, p.N, p.K, p.Batch) > math.MaxInt32 {
		return wrong("no such shape")
	}
	if p.M == 0 || p.N == 0 {
		return nil // nothing to do
	}
	ok := p.TypeD == p.TypeA || p.TypeD == BlasF32
	switch p.TypeA {
	case BlasF32, BlasF16, BlasBF16:
	case BlasI8: // the only form that the library has
		if p.TransA || !p.TransB || p.N%4 != 0 || p.K%4 != 0 {
			return wrong("products of int8 take A as it is, B transposed, and N and K in fours")
		}
		ok = p.TypeD == BlasI32 && math.Trunc(float64(p.Alpha)) == float64(p.Alpha) && math.Trunc(float64(p.Beta)) == float64(p.Beta)
	default:
		ok = false
	}
	if !ok {
		return wrong("there is none with these types and factors %v, %v", p.Alpha, p.Beta)
	}
	p.Batch = max(p.Batch, 1)
	if p.C == 0 {
		p.C, p.LDC, p.StrideC = p.D, p.LDD, p.StrideD
	}
	columns := func(trans bool, no, yes int) int {
		if trans {
			return yes
		}
		return no
	}
	for _, l := range []struct {
		name string
		at   Ptr
		ld   *int
		cols int
		t    BlasType
	}{{"A", p.A, &p.LDA, columns(p.TransA, p.K, p.M), p.TypeA}, {"B", p.B, &p.LDB, columns(p.TransB, p.N, p.K), p.TypeA}, {"C", p.C, &p.LDC, p.N, p.TypeD}, {"D", p.D, &p.LDD, p.N, p.TypeD}} {
		if *l.ld == 0 {
			*l.ld = l.cols
		}
		if *l.ld < l.cols {
			return wrong("rows of %s have %d elements but are %d apart", l.name, l.cols, *l.ld)
		}
		if l.at == 0 || uint64(l.at)%uint64(blasTypes[l.t].size) != 0 {
			return wrong("%s is at %#x", l.name, uint64(l.at))
		}
	}
	if p.Batch > 1 && p.StrideD < int64(p.N) {
		return wrong("results of the batch lie %d elements apart", p.StrideD)
	}
	return nil
}

// key is that of a complete product.
func (p *Product) key() blasKey {
	k := blasKey{p.M, p.N, p.K, p.LDA, p.LDB, p.LDC, p.LDD, p.Batch, p.TypeA, p.TypeD, p.TransA, p.TransB, p.TF32 && p.TypeA == BlasF32, p.StrideA, p.StrideB, p.StrideC, p.StrideD, [4]uint32{}}
	if p.Batch == 1 {
		k.strideA, k.strideB, k.strideC, k.strideD = 0, 0, 0, 0
	}
	for i, at := range [4]Ptr{p.A, p.B, p.C, p.D} {
		k.alignment[i] = uint32(min(at&-at, 256))
	}
	return k
}

// MatMul queues a product. It can be recorded in a graph. Sums are float32, or int32 for I8, in an
// order that depends on the shape, the library and the device only: the first algorithm
// that the library proposes is taken, none is timed.
func (b *Blas) MatMul(p *Product) error {
	q := *p
	if err := q.complete(); err != nil || q.M == 0 || q.N == 0 {
		return err
	}
	k := q.key()
	plan := b.plans[k]
	if plan == nil {
		var err error
		if plan, err = b.plan(&q, &k); err != nil {
			return err
		}
		b.plans[k] = plan
	}
	if q.TypeA == BlasI8 {
		*(*int32)(unsafe.Pointer(&b.one)), *(*int32)(unsafe.Pointer(&b.zero)) = int32(q.Alpha), int32(q.Beta)
	} else {
		*(*float32)(unsafe.Pointer(&b.one)), *(*float32)(unsafe.Pointer(&b.zero)) = q.Alpha, q.Beta
	}
	for {
		c := &plan.choices[0]
		// The library's matrices are in columns: D' = op(B)'·op(A)'.
		status := b.lib.api.Matmul(b.handle, plan.desc, unsafe.Pointer(&b.one), q.B, plan.layouts[0], q.A, plan.layouts[1], unsafe.Pointer(&b.zero),
			q.C, plan.layouts[2], q.D, plan.layouts[3], &c.algo, b.workspace, BlasWorkspace, b.t.stream)
		refused := status == statusInvalid || status == statusArch || status == statusNotSupported
		if refused && !plan.settled && len(plan.choices) > 1 {
			plan.choices = plan.choices[1:]
			continue
		}
		plan.settled = true
		return b.check("cublasLtMatmul "+q.String(), status)
	}
}

// Numbers of cublasStatus_t.
const (
	statusAlloc        = 3
	statusInvalid      = 7
	statusArch         = 8
	statusExecution    = 13
	statusNotSupported = 15
)

// plan makes the descriptions of a product and asks for its algorithms.
func (b *Blas) plan(p *Product, k *blasKey) (plan *blasPlan, err error) {
	api := &b.lib.api
	plan = &blasPlan{}
	defer func() {
		if err != nil {
			plan.destroy(b)
		}
	}()
	step := func(call string, status int32) bool {
		if err == nil {
			err = b.check(call+" for "+p.String(), status)
		}
		return err == nil
	}
	set := func(call string, f func(handle, int32, unsafe.Pointer, uint64) int32, h handle, attr int32, v unsafe.Pointer, bytes uint64) {
		if err == nil {
			step(call, f(h, attr, v, bytes))
		}
	}
	compute, scale := int32(compute32F), blasTypes[BlasF32].kind
	if p.TypeA == BlasI8 {
		compute, scale = compute32I, blasTypes[BlasI32].kind
	} else if k.tf32 {
		compute = computeTF32
	}
	if !step("cublasLtMatmulDescCreate", api.DescCreate(&plan.desc, compute, scale)) {
		return plan, err
	}
	operation := func(trans bool) *int32 {
		op := new(int32) // CUBLAS_OP_N is 0, CUBLAS_OP_T 1
		if trans {
			*op = 1
		}
		return op
	}
	set("cublasLtMatmulDescSetAttribute", api.DescSet, plan.desc, descTransA, unsafe.Pointer(operation(p.TransB)), 4)
	set("cublasLtMatmulDescSetAttribute", api.DescSet, plan.desc, descTransB, unsafe.Pointer(operation(p.TransA)), 4)

	// A matrix in rows is its transpose in columns.
	stored := func(trans bool, rows, cols int) (uint64, uint64) {
		if trans {
			rows, cols = cols, rows
		}
		return uint64(cols), uint64(rows)
	}
	br, bc := stored(p.TransB, p.K, p.N)
	ar, ac := stored(p.TransA, p.M, p.K)
	for i, l := range [4]struct {
		t          BlasType
		rows, cols uint64
		ld         int
		stride     int64
	}{{p.TypeA, br, bc, p.LDB, p.StrideB}, {p.TypeA, ar, ac, p.LDA, p.StrideA}, {p.TypeD, uint64(p.N), uint64(p.M), p.LDC, p.StrideC}, {p.TypeD, uint64(p.N), uint64(p.M), p.LDD, p.StrideD}} {
		if !step("cublasLtMatrixLayoutCreate", api.LayoutCreate(&plan.layouts[i], blasTypes[l.t].kind, l.rows, l.cols, int64(l.ld))) {
			return plan, err
		}
		if p.Batch > 1 {
			batch, stride := new(int32), new(int64)
			*batch, *stride = int32(p.Batch), l.stride
			set("cublasLtMatrixLayoutSetAttribute", api.LayoutSet, plan.layouts[i], layoutBatch, unsafe.Pointer(batch), 4)
			set("cublasLtMatrixLayoutSetAttribute", api.LayoutSet, plan.layouts[i], layoutStride, unsafe.Pointer(stride), 8)
		}
	}
	var pref handle
	if err != nil || !step("cublasLtMatmulPreferenceCreate", api.PrefCreate(&pref)) {
		return plan, err
	}
	defer api.PrefDestroy(pref)
	bytes := new(uint64)
	*bytes = BlasWorkspace
	set("cublasLtMatmulPreferenceSetAttribute", api.PrefSet, pref, prefWorkspace, unsafe.Pointer(bytes), 8)
	if p.TypeD == BlasF16 || p.TypeD == BlasBF16 { // parts of a sum along K are not to be rounded to that
		mask := new(uint32)
		*mask = 2 // CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
		set("cublasLtMatmulPreferenceSetAttribute", api.PrefSet, pref, prefReduction, unsafe.Pointer(mask), 4)
	}
	for i, a := range [4]uint32{k.alignment[1], k.alignment[0], k.alignment[2], k.alignment[3]} {
		v := new(uint32)
		*v = a
		set("cublasLtMatmulPreferenceSetAttribute", api.PrefSet, pref, prefAlignmentA+int32(i), unsafe.Pointer(v), 4)
	}
	if err != nil {
		return plan, err
	}
	list, found := make([]blasChoice, 8), new(int32)
	l := &plan.layouts
	if !step("cublasLtMatmulAlgoGetHeuristic", api.Heuristic(b.handle, plan.desc, l[0], l[1], l[2], l[3], pref, int32(len(list)), &list[0], found)) {
		return plan, err
	}
	for _, c := range list[:min(max(*found, 0), int32(len(list)))] {
		if c.state == 0 && c.workspace <= BlasWorkspace {
			plan.choices = append(plan.choices, c)
		}
	}
	if len(plan.choices) == 0 {
		return plan, &Error{Call: "cublasLtMatmulAlgoGetHeuristic for " + p.String(), Device: b.t.device.Ordinal, Text: "the library has no algorithm for this product",
			Hint: "install a newer cuBLAS"}
	}
	return plan, nil
}

func (p *blasPlan) destroy(b *Blas) {
	for _, l := range p.layouts {
		if l != 0 {
			b.lib.api.LayoutDestroy(l)
		}
	}
	if p.desc != 0 {
		b.lib.api.DescDestroy(p.desc)
	}
}

var blasHints = map[int32]string{
	1:                  "the library could not start on the device: is it for the driver's version of CUDA?",
	statusAlloc:        "the library found no memory on the device: use smaller micro batches",
	statusArch:         "the library is too old for this GPU: install a newer cuBLAS",
	statusNotSupported: "install a newer cuBLAS",
}

// check makes an error of a status.
func (b *Blas) check(call string, status int32) error {
	if status == 0 {
		return nil
	}
	api := &b.lib.api
	e := &Error{Call: call, Device: b.t.device.Ordinal, Code: int(status), Name: text(api.StatusName(status)), Text: text(api.StatusText(status)), Hint: blasHints[status]}
	if status == statusExecution || status == 14 { // perhaps the device's fault: its own error says more
		if err := b.t.Wait(); err != nil {
			return err
		}
	}
	return e
}
